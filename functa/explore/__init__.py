"""A local web page to explore a run: its functaset, its field at any resolution, its generator.

`session` answers in arrays, `originals` finds the images behind a functaset, `page` shows them with
Gradio. The command is `functa explore RUN`.
"""
