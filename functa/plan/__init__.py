"""What the stages of a config cost on hardware that is not at hand; `functa plan` prints it.

`hardware` has published data of chips, `programs` builds the programs of a config without its data,
`operations` counts the work of a traced program, `compiled` reads the analyses of XLA, and `stages`
computes the cost of each stage from these.
"""
