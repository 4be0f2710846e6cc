"""Questions to a trained field: how it fits, what its latents cost, how they behave.

`measures` lists them; each is a function of a `subject.Subject` and answers with `table.Table`s.
"""
