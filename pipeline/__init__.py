"""The pipeline: files, processes and people around the two stages.

from pipeline import generate, train_vqvae, train_prior, load

Names are imported when they are first used (PEP 562), so that drawing images does not load what training needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names once more, for editors and type checkers; a test holds the two lists equal
    from pipeline.codec.compress import Compressed as Compressed
    from pipeline.codec.compress import compress as compress
    from pipeline.codec.decompress import Decompressed as Decompressed
    from pipeline.codec.decompress import decompress as decompress
    from pipeline.codec.decompress import decompress_files as decompress_files
    from pipeline.errors import CheckpointError as CheckpointError
    from pipeline.errors import DataError as DataError
    from pipeline.errors import DivergedError as DivergedError
    from pipeline.errors import GenError as GenError
    from pipeline.errors import InterruptedRunError as InterruptedRunError
    from pipeline.errors import UsageError as UsageError
    from pipeline.evaluation.compare import Comparison as Comparison
    from pipeline.evaluation.compare import compare as compare
    from pipeline.evaluation.evaluate import evaluate as evaluate
    from pipeline.evaluation.folders import FolderEvaluation as FolderEvaluation
    from pipeline.evaluation.folders import evaluate_folder as evaluate_folder
    from pipeline.evaluation.nearest import Neighbours as Neighbours
    from pipeline.evaluation.nearest import nearest as nearest
    from pipeline.evaluation.report.report import report as report
    from pipeline.evaluation.score import Scores as Scores
    from pipeline.evaluation.score import score as score
    from pipeline.reporting import Console as Console
    from pipeline.reporting import Lines as Lines
    from pipeline.reporting import Reporter as Reporter
    from pipeline.reporting import Silent as Silent
    from pipeline.runs.evaluation import Evaluation as Evaluation
    from pipeline.runs.published.pull import pull as pull
    from pipeline.runs.published.push import push as push
    from pipeline.runs.validation import Metrics as Metrics
    from pipeline.sampling.complete import Completions as Completions
    from pipeline.sampling.complete import complete as complete
    from pipeline.sampling.features import features as features
    from pipeline.sampling.features import features_file as features_file
    from pipeline.sampling.generate import Generated as Generated
    from pipeline.sampling.generate import generate as generate
    from pipeline.sampling.generate import generate_files as generate_files
    from pipeline.sampling.model import Model as Model
    from pipeline.sampling.model import load as load
    from pipeline.sampling.motion.film import film as film
    from pipeline.sampling.motion.interpolate import Interpolation as Interpolation
    from pipeline.sampling.motion.interpolate import interpolate as interpolate
    from pipeline.sampling.samples import Samples as Samples
    from pipeline.serving.app import app as app
    from pipeline.training.launch import Trained as Trained
    from pipeline.training.sharpen import sharpen as sharpen
    from pipeline.training.stage1 import train_vqvae as train_vqvae
    from pipeline.training.stage2 import train_prior as train_prior
    from stage2_prior import SamplingOptions as SamplingOptions

_EXPORTS = {
    "pipeline.codec.compress": ("Compressed", "compress"),
    "pipeline.codec.decompress": ("Decompressed", "decompress", "decompress_files"),
    "pipeline.serving.app": ("app",),
    "pipeline.errors": (
        "CheckpointError",
        "DataError",
        "DivergedError",
        "GenError",
        "InterruptedRunError",
        "UsageError",
    ),
    "pipeline.evaluation.compare": ("Comparison", "compare"),
    "pipeline.evaluation.evaluate": ("evaluate",),
    "pipeline.evaluation.folders": ("FolderEvaluation", "evaluate_folder"),
    "pipeline.evaluation.nearest": ("Neighbours", "nearest"),
    "pipeline.evaluation.score": ("Scores", "score"),
    "pipeline.evaluation.report.report": ("report",),
    "pipeline.reporting": ("Console", "Lines", "Reporter", "Silent"),
    "pipeline.runs.evaluation": ("Evaluation",),
    "pipeline.runs.published.pull": ("pull",),
    "pipeline.runs.published.push": ("push",),
    "pipeline.runs.validation": ("Metrics",),
    "pipeline.sampling.complete": ("Completions", "complete"),
    "pipeline.sampling.features": ("features", "features_file"),
    "pipeline.sampling.generate": ("Generated", "generate", "generate_files"),
    "pipeline.sampling.model": ("Model", "load"),
    "pipeline.sampling.motion.film": ("film",),
    "pipeline.sampling.motion.interpolate": ("Interpolation", "interpolate"),
    "pipeline.sampling.samples": ("Samples",),
    "pipeline.training.launch": ("Trained",),
    "pipeline.training.sharpen": ("sharpen",),
    "pipeline.training.stage1": ("train_vqvae",),
    "pipeline.training.stage2": ("train_prior",),
    "stage2_prior": ("SamplingOptions",),
}

if not TYPE_CHECKING:  # with it a type checker would take every name for an export

    def __getattr__(name: str) -> object:
        module = next((module for module, names in _EXPORTS.items() if name in names), None)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = getattr(import_module(module), name)
        return globals()[name]


__all__ = sorted(name for names in _EXPORTS.values() for name in names)


def __dir__() -> list[str]:
    return __all__
