"""What was found, as tables, figures and a page.

sweep_report.py is `dkv report` (the lines of `dkv sweep`), tables.py `dkv eval report` and eval_figures.py `dkv eval
figures` (an evaluation's CSV). figures.py draws for both. `dkv report` needs neither torch nor a model.
"""
