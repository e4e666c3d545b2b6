"""Modules:

- `hpa_fastai.decide.outcome`: From out-of-fold probabilities to a rule, to label sets, and to what they are worth
- `hpa_fastai.images.kaggle`: Lists and files checked together, packed, and divided into folds
- `hpa_fastai.runs.crossval`: From a folder in Kaggle's layout to a submission, with an out-of-sample estimate of its score
- `hpa_fastai.runs.fold`: A recipe trained phase by phase; after a stop, it goes on where it was
- `hpa_fastai.runs.folder`: The folder of a finished run: what is in it, and how to read it
- `hpa_fastai.runs.predictor`: From images to labels: a trained run, read from its folder
- `hpa_fastai.runs.recipes`: Every choice of a system, by name, in a file that a run can be repeated from
- `hpa_fastai.runs.setup`: A recipe's words turned into batches and a fastai `Learner`
- `hpa_fastai.runs.stages`: Train a network, predict what it has not seen, and leave a file after every step"""

__version__ = "0.0.1"

def __getattr__(name):
    "Every public name, imported on first use (PEP 562), so that `import hpa_fastai` and each command's `--help` stay quick."
    if name.startswith('__') and name != '__all__': raise AttributeError(name)
    from importlib import import_module
    everything = import_module('hpa_fastai.all')
    if name == '__all__': return everything.__all__
    if name in everything.__all__: return getattr(everything, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

def __dir__():
    from importlib import import_module
    return sorted([*globals(), *import_module('hpa_fastai.all').__all__])
