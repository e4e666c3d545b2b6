"""The names that a notebook needs, as `from hpa_fastai import *` gives them.

Everything else is one import away in its part."""
# the ground
from .labels import (
    CHANNELS, LABELS, DataError, cooccurrence, decode_targets, encode_targets, label_counts, read_labels,
    read_submission, target_names, train_label_sets,
)
# images
from .images.samples import TensorRGBY, composite, find_samples, open_rgby, resize_rgby, show_samples
from .images.pack import build_pack, open_pack
from .images.splits import fold_counts, join_groups, stratified_folds, stratified_holdout
from .images.duplicates import duplicate_groups, hash_images, leak_report, near_pairs
from .images.download import download_list
from .images.merging import merge_folders
from .images.competition import kaggle_files
# data
from .data.symmetries import RandomSymmetry, dihedral_views
from .data.normalize import StainNormalize
from .data.augment import rgby_augments
from .data.sampling import (
    SAMPLING, factor_repeats, frequency_repeats, plot_repeats, rare_repeats, repeats_table, share_repeats,
)
from .data.loader import PackDL
from .data.quality import quality_flags
from .data.block import RGBYBlock, grid_dls, rgby_dls, source_dl
# models
from .models.weights import load_weights, save_weights
from .models.stems import STEMS
from .models.heads import HEADS
from .models.factory import NETWORKS, rgby_model
# training
from .train.losses import (
    LOSSES, HardNegativeLoss, LovaszHingeLoss, MultiLabelBCELoss, MultiLabelFocalLoss, SoftF1Loss, SumLoss, WrappedLoss,
    AsymmetricLoss, class_weights,
)
from .train.metrics import MacroF1, MeanAP, f1_per_class, macro_f1, mean_average_precision
from .train.intervals import bootstrap, class_report
from .train.learner import OPTIMIZERS, rgby_learner
from .train.checkpoint import Checkpoint, SaveBest
from .train.averaging import WeightEMA, WeightSWA
from .train.schedules import SCHEDULES
# decisions
from .decide.tta import DihedralTTA
from .decide.submission import check_submission, read_probs, write_probs, write_submission
from .decide.rules import ClassRule, FixedRule, GlobalRule, MeanRule, RatioRule, constant_floor, cross_decide, load_rule
from .decide.calibration import CalibratedRule, StackedRule
from .decide.shift import adapt_rule, estimate_shares
from .decide.thresholds import choose_rule, held_out_score
from .decide.ensembles import ENSEMBLES, make_ensemble
# explanations
from .explain.interpret import RGBYInterpretation, multilabel_confusion
from .explain.plots import plot_confusion_matrix, plot_f1, plot_images, plot_logs, plot_thresholds
from .explain.gradcam import grad_cam, show_cam
from .explain.embeddings import learner_features, plot_projection, project_features
# runs
from .runs.recipes import RECIPES, Phase, Recipe, load_recipe
from .runs.folder import RunFolder
from .runs.predictor import Predictor
from .runs.crossval import cross_validate
from .runs.combine import ensemble_runs
from .runs.compare import compare_runs, plot_comparison
from .runs.report import write_report
# simulated cells
from .simulate.patterns import pattern, show_patterns
from .simulate.dataset import simulate_dataset, simulate_field

__all__ = [o for o in globals() if not o.startswith('_')]
