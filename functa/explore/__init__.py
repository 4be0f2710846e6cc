"""A local web page to explore a run: its functaset, its field at any resolution, its generator.

`session` answers in arrays, `page` shows the answers with Gradio; `functa explore RUN` serves it.
"""
