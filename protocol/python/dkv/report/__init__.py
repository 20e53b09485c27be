"""`dkv report`: what a sweep found, as one page to read and figures to show.

results.py reads the lines, means.py compares like with like, figures.py draws, words.py says it, page.py puts it
together. Nothing here needs torch or a model.
"""
