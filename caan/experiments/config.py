"""Options of the encoders of the paper's Table 6, without SciPy and scikit-learn."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Sizes of the encoders of Table 6; an option means nothing to an encoder without it.

    The encoders' docstrings say which are published and which are our choice.
    """

    modality: str = "context"
    """What they look at: context, face, or fusion (both encodings side by side)."""
    reduced_size: int = 256
    """Size of a frame's vector after PCA."""
    svm_c: float | None = None
    """Cost of the SVM; None: the encoder's own (10, or 1e-3 where the SVM is linear)."""
    sharpness: float | None = None
    """Of the soft assignment to words (10) or the concepts' softmax (20); None: these."""
    dictionary_size: int = 2000
    """Words (transferred_encoding)."""
    num_nearest: int = 10
    """Words that a frame is assigned to (transferred_encoding)."""
    num_steps: int = 64
    """Steps that a video is resampled to (kernelized_features)."""
    num_bins: int = 8
    """Lowest frequencies that are kept (kernelized_features)."""
    degree: int = 2
    """Degree of the polynomial kernel (kernelized_features)."""
    offset: float = 1.0
    """Offset of the polynomial kernel (kernelized_features)."""
    feature_size: int = 512
    """Size of a video's vector after PCA (kernelized_features)."""
    classifier: str = "svm"
    """svm, or src: sparse representation over the training videos (kernelized_features)."""
    num_atoms: int = 30
    """Training videos in a sparse representation (kernelized_features)."""
    num_concepts: int = 1000
    """Concepts (concept_selection)."""
    num_selected: int = 500
    """Scores of concepts that are kept (concept_selection)."""
