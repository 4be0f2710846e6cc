"""What the stages of a config cost on hardware that is not at hand.

`hardware` holds published data of chips, `operations` counts the work of a traced program, `programs` builds the
programs of a config without its data, `compiled` reads the compiler's own analyses, and `stages` turns all of it
into the `cost` of a stage. The `functa plan` command prints the result.
"""
