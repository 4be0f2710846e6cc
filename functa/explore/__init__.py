"""A local page to explore a run: its functaset, its field at any resolution, its generator.

What can be asked is plain Python and JAX (`explorer` and the modules it is made of); `web` puts it on a page, and
`python -m functa.explore RUN` serves that page to this machine alone.
"""
