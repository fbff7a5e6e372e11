"""The encoders of the paper's Table 6: they turn a video's frames into one vector for an SVM.

They take packed videos and learn in one pass.

Legend: N frames, V videos, E vector, P reduced vector, W words or concepts, K emotions.
"""

import inspect
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest, chi2
from sklearn.linear_model import orthogonal_mp_gram
from sklearn.metrics.pairwise import additive_chi2_kernel
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from caan.errors import InputError
from caan.experiments.config import EncoderConfig
from caan.features.batches import rows_of_all
from caan.features.packed import PackedVideos
from caan.models.config import Modality
from caan.models.head import modalities_of

CHUNK_FRAMES = 2048
"""Frames that are encoded at a time, which bounds memory."""


class ClassicalModel:
    """An encoder with a classifier: `fit` on training videos, then `evidence` of any videos.

    `modality` is context, face, or fusion (both encodings side by side).
    """

    def __init__(
        self, modality: Modality, reduced_size: int, max_fit_frames: int, seed: int
    ) -> None:
        self.modalities = modalities_of(modality)
        self.reduced_size = reduced_size
        self.max_fit_frames = max_fit_frames
        self.seed = seed
        self._reducers: dict[str, PCA] = {}

    def learn_words(self, modality: str, frames_NP: np.ndarray) -> None:
        """Learn from reduced training frames [N, P] what `encode` needs."""

    def encode(self, modality: str, frames_NP: np.ndarray, counts_V: np.ndarray) -> np.ndarray:
        """Vector of each video, float32 [V, ...], from its frames; every count is at least 1."""
        raise NotImplementedError

    def fit_classifier(self, features: np.ndarray, labels_V: np.ndarray) -> None:
        """Learn the labels from the videos' vectors."""
        raise NotImplementedError

    def decide(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decision values [V, classes] and the class numbers of the columns."""
        raise NotImplementedError

    def fit(self, train: PackedVideos) -> "ClassicalModel":
        """Learn from the usable training videos.

        Raises:
            InputError: fewer than two emotions among them.
        """
        train = train.usable()
        if len(np.unique(train.labels_V)) < 2:
            raise InputError(
                "training needs videos of at least two emotions with a face found; there are "
                f"{len(train)} usable videos of {len(np.unique(train.labels_V))}"
            )
        for modality in self.modalities:
            rows = rows_of_all(train)
            rows = rows[:: max(len(rows) // self.max_fit_frames, 1)]
            vectors_NE = _vectors(train, modality)[rows].astype(np.float32)
            size = min(self.reduced_size, *vectors_NE.shape)
            reducer = PCA(size, svd_solver="randomized", random_state=self.seed)
            self._reducers[modality] = reducer.fit(vectors_NE)
            self.learn_words(modality, _unit(reducer.transform(vectors_NE)))
        self.fit_classifier(self.features(train), train.labels_V)
        return self

    def features(self, videos: PackedVideos) -> np.ndarray:
        """Vector of each video [V, ...]; all videos must have frames."""
        return np.concatenate(
            [
                self.encode(modality, self._reduced(videos, modality), videos.counts_V)
                for modality in self.modalities
            ],
            axis=1,
        )

    def evidence(self, videos: PackedVideos) -> np.ndarray:
        """Decision value of each emotion: float32 [V, K]; 0 for a video without frames."""
        evidence_VK = np.zeros((len(videos), len(videos.label_set)), np.float32)
        some = videos.counts_V > 0
        if some.any():
            values, classes = self.decide(self.features(videos.select(some)))
            # Emotions without a training video get less than every other value.
            chosen_VK = np.full((int(some.sum()), len(videos.label_set)), values.min() - 1.0)
            chosen_VK[:, classes] = values
            evidence_VK[some] = chosen_VK
        return evidence_VK

    def _reduced(self, videos: PackedVideos, modality: str) -> np.ndarray:
        """Unit vectors of all frames after the reduction: float32 [N, P]."""
        rows = rows_of_all(videos)
        vectors = _vectors(videos, modality)
        reducer = self._reducers[modality]
        if vectors.shape[1] != reducer.n_features_in_:
            raise InputError(
                f"the encoder takes {modality} vectors of {reducer.n_features_in_} numbers, and "
                f"these features have {vectors.shape[1]}: they come from another backbone"
            )
        parts = [
            reducer.transform(vectors[rows[start : start + CHUNK_FRAMES]].astype(np.float32))
            for start in range(0, len(rows), CHUNK_FRAMES)
        ]
        return _unit(np.concatenate(parts).astype(np.float32))


class TransferredEncoding(ClassicalModel):
    """Xu et al.: frames soft-assigned to a dictionary, summed to a histogram, chi-square SVM.

    The dictionary is a spherical k-means of training frames, or of `dictionary_vectors_NE` (vectors
    of an auxiliary emotional image set, as in the original) from the same backbone.

    Source: [11]; dictionary size, assignment to the nearest words and the kernel are our choice.
    """

    def __init__(
        self,
        *,
        modality: Modality = "context",
        dictionary_size: int = 2000,
        num_nearest: int = 10,
        sharpness: float = 10.0,
        svm_c: float = 10.0,
        reduced_size: int = 256,
        max_fit_frames: int = 20_000,
        dictionary_vectors_NE: np.ndarray | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(modality, reduced_size, max_fit_frames, seed)
        self.dictionary_size = dictionary_size
        self.num_nearest = num_nearest
        self.sharpness = sharpness
        self.svm_c = svm_c
        self.dictionary_vectors_NE = dictionary_vectors_NE
        self._words: dict[str, np.ndarray] = {}

    def learn_words(self, modality: str, frames_NP: np.ndarray) -> None:
        """The dictionary, unit vectors [W, P]."""
        if self.dictionary_vectors_NE is not None:
            frames_NP = _unit(self._reducers[modality].transform(self.dictionary_vectors_NE))
        self._words[modality] = _spherical_words(frames_NP, self.dictionary_size, self.seed)

    def encode(self, modality: str, frames_NP: np.ndarray, counts_V: np.ndarray) -> np.ndarray:
        """Histogram of words, square root, sum 1: float32 [V, W]."""
        words_WP = self._words[modality]
        nearest = min(self.num_nearest, len(words_WP))
        starts_V = np.cumsum(counts_V) - counts_V
        video_N = np.repeat(np.arange(len(counts_V)), counts_V)
        histogram_VW = np.zeros((len(starts_V), len(words_WP)), np.float32)
        for start in range(0, len(frames_NP), CHUNK_FRAMES):
            chunk = slice(start, start + CHUNK_FRAMES)
            similar_NW = frames_NP[chunk] @ words_WP.T
            top_Nn = np.argpartition(-similar_NW, nearest - 1, axis=1)[:, :nearest]
            weight_Nn = _softmax(self.sharpness * np.take_along_axis(similar_NW, top_Nn, axis=1))
            np.add.at(histogram_VW, (video_N[chunk][:, None], top_Nn), weight_Nn)
        rooted_VW = np.sqrt(histogram_VW)
        return rooted_VW / np.maximum(rooted_VW.sum(axis=1, keepdims=True), 1e-9)

    def fit_classifier(self, features: np.ndarray, labels_V: np.ndarray) -> None:
        """SVM with the kernel exp(-chi2 / mean chi2 of the training videos)."""
        self._train_features = features
        distance_VV = -additive_chi2_kernel(features)
        self._scale = max(float(distance_VV.mean()), 1e-9)
        self._svm = SVC(C=self.svm_c, kernel="precomputed", class_weight="balanced")
        self._svm.fit(np.exp(-distance_VV / self._scale), labels_V)

    def decide(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One-against-rest values of the SVM."""
        distance = -additive_chi2_kernel(features, self._train_features)
        return _decisions(self._svm, np.exp(-distance / self._scale))


class KernelizedFeatures(ClassicalModel):
    """Polynomial kernels of each dimension over time with low Fourier bases, then PCA.

    A video is resampled to `num_steps`; per dimension and base (cos and sin of the `num_bins`
    lowest frequencies) the feature is (<base, x> + offset)^degree. The classifier is a linear SVM,
    or `src`: the class whose training videos rebuild the vector best (sparse representation).

    Source: [26], abstract; all sizes are our choice.
    """

    def __init__(
        self,
        *,
        modality: Modality = "context",
        num_steps: int = 64,
        num_bins: int = 8,
        degree: int = 2,
        offset: float = 1.0,
        feature_size: int = 512,
        classifier: Literal["svm", "src"] = "svm",
        svm_c: float = 1e-3,
        num_atoms: int = 30,
        reduced_size: int = 256,
        max_fit_frames: int = 20_000,
        seed: int = 0,
    ) -> None:
        super().__init__(modality, reduced_size, max_fit_frames, seed)
        self.num_steps = num_steps
        self.num_bins = num_bins
        self.degree = degree
        self.offset = offset
        self.feature_size = feature_size
        self.classifier = classifier
        self.svm_c = svm_c
        self.num_atoms = num_atoms

    def encode(self, modality: str, frames_NP: np.ndarray, counts_V: np.ndarray) -> np.ndarray:
        """Kernel values of each dimension with each base: float32 [V, P * bases]."""
        angle_FT = 2 * np.pi * np.outer(np.arange(self.num_bins), np.arange(self.num_steps))
        angle_FT = angle_FT / self.num_steps
        bases_QT = np.concatenate([np.cos(angle_FT), np.sin(angle_FT[1:])]).astype(np.float32)
        starts_V = np.cumsum(counts_V) - counts_V
        out = []
        for start, count in zip(starts_V, counts_V, strict=True):
            place_T = np.linspace(0, count - 1, self.num_steps)
            low_T = place_T.astype(np.int64)
            high_T = np.minimum(low_T + 1, count - 1)
            share_T1 = (place_T - low_T)[:, None].astype(np.float32)
            x_TP = frames_NP[start + low_T] * (1 - share_T1) + frames_NP[start + high_T] * share_T1
            # x_TP are unit vectors: scale them so that a number has the size of the offset.
            product_QP = bases_QT @ x_TP * (np.sqrt(x_TP.shape[1]) / self.num_steps)
            out.append(((product_QP + self.offset) ** self.degree).ravel())
        return np.stack(out)

    def fit_classifier(self, features: np.ndarray, labels_V: np.ndarray) -> None:
        """PCA, then the SVM or the training videos as atoms."""
        size = min(self.feature_size, len(features) - 1, features.shape[1])
        # Not standardised: the energy of a frequency shows how much of it is signal.
        self._reduce = PCA(size, svd_solver="randomized", random_state=self.seed).fit(features)
        reduced_VS = self._reduce.transform(features)
        if self.classifier == "svm":
            self._svm = LinearSVC(C=self.svm_c, class_weight="balanced", random_state=self.seed)
            self._svm.fit(reduced_VS, labels_V)
        else:
            self._atoms_VS, self._atom_labels_V = _unit(reduced_VS), labels_V

    def decide(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """SVM values, or minus the distance to what each class's atoms rebuild."""
        reduced_VS = self._reduce.transform(features)
        if self.classifier == "svm":
            return _decisions(self._svm, reduced_VS)
        unit_US = _unit(reduced_VS)
        atoms_VS = self._atoms_VS
        codes_VU = orthogonal_mp_gram(
            atoms_VS @ atoms_VS.T,
            atoms_VS @ unit_US.T,
            n_nonzero_coefs=min(self.num_atoms, len(atoms_VS)),
        ).reshape(len(atoms_VS), len(unit_US))
        classes = np.unique(self._atom_labels_V)
        values = []
        for label in classes:
            own = self._atom_labels_V == label
            rebuilt_US = codes_VU[own].T @ atoms_VS[own]
            values.append(-np.linalg.norm(unit_US - rebuilt_US, axis=1))
        return np.stack(values, axis=1), classes


class ConceptSelection(ClassicalModel):
    """Scores of concepts, pooled over frames and selected by chi-square, then a linear SVM.

    `concept_scores` gives the concepts' logits from vectors [N, E] (say, an ImageNet classifier's
    last layers on fc6). Without it the concepts are clusters of training frames, without names.

    Source: [27], from memory; clusters as concepts, pooling and sizes are our choice.
    """

    def __init__(
        self,
        *,
        modality: Modality = "context",
        num_concepts: int = 1000,
        num_selected: int = 500,
        sharpness: float = 20.0,
        svm_c: float = 1e-3,
        reduced_size: int = 256,
        max_fit_frames: int = 20_000,
        concept_scores: Callable[[np.ndarray], np.ndarray] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(modality, reduced_size, max_fit_frames, seed)
        self.num_concepts = num_concepts
        self.num_selected = num_selected
        self.sharpness = sharpness
        self.svm_c = svm_c
        self.concept_scores = concept_scores
        self._concepts: dict[str, np.ndarray] = {}

    def learn_words(self, modality: str, frames_NP: np.ndarray) -> None:
        """Cluster the frames into concepts, unless `concept_scores` gives them."""
        if self.concept_scores is None:
            self._concepts[modality] = _spherical_words(frames_NP, self.num_concepts, self.seed)

    def encode(self, modality: str, frames_NP: np.ndarray, counts_V: np.ndarray) -> np.ndarray:
        """Mean and greatest softmax score of each concept: float32 [V, 2W]."""
        if self.concept_scores is None:
            logits_NW = self.sharpness * frames_NP @ self._concepts[modality].T
        else:
            logits_NW = self.concept_scores(frames_NP)
        scores_NW = _softmax(logits_NW)
        starts_V = np.cumsum(counts_V) - counts_V
        mean_VW = np.add.reduceat(scores_NW, starts_V, axis=0) / counts_V[:, None]
        return np.concatenate([mean_VW, np.maximum.reduceat(scores_NW, starts_V, axis=0)], axis=1)

    def _reduced(self, videos: PackedVideos, modality: str) -> np.ndarray:
        if self.concept_scores is None:
            return super()._reduced(videos, modality)
        return _vectors(videos, modality)[rows_of_all(videos)].astype(np.float32)

    def fit_classifier(self, features: np.ndarray, labels_V: np.ndarray) -> None:
        """Selection, scaling, SVM."""
        self._classifier = make_pipeline(
            SelectKBest(chi2, k=min(self.num_selected, features.shape[1])),
            StandardScaler(),
            LinearSVC(C=self.svm_c, class_weight="balanced", random_state=self.seed),
        ).fit(features, labels_V)

    def decide(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One-against-rest values of the SVM."""
        return _decisions(self._classifier, features)


CLASSICAL_MODELS: dict[str, Callable[..., ClassicalModel]] = {
    "transferred_encoding": TransferredEncoding,
    "kernelized_features": KernelizedFeatures,
    "concept_selection": ConceptSelection,
}


def build_encoder(name: str, config: EncoderConfig, *, seed: int = 0) -> ClassicalModel:
    """The encoder of this name in CLASSICAL_MODELS with the options that it has."""
    encoder = CLASSICAL_MODELS[name]
    accepted = inspect.signature(encoder).parameters
    options = {
        name: value
        for name, value in asdict(config).items()
        if name in accepted and value is not None
    }
    return encoder(**options, seed=seed)


def _vectors(videos: PackedVideos, modality: str) -> np.ndarray:
    return videos.face_ND if modality == "face" else videos.context_NE


def _unit(x_NP: np.ndarray) -> np.ndarray:
    return x_NP / np.maximum(np.linalg.norm(x_NP, axis=1, keepdims=True), 1e-9)


def _softmax(logits_NW: np.ndarray) -> np.ndarray:
    powers_NW = np.exp(logits_NW - logits_NW.max(axis=1, keepdims=True))
    return powers_NW / powers_NW.sum(axis=1, keepdims=True)


def _spherical_words(frames_NP: np.ndarray, num_words: int, seed: int) -> np.ndarray:
    """Unit centres of a k-means of unit vectors: [W, P]; fewer than asked for if frames are few."""
    num_words = min(num_words, max(len(frames_NP) // 2, 1))
    means = MiniBatchKMeans(
        num_words, init="random", n_init=1, max_iter=20, batch_size=4096, random_state=seed
    )
    return _unit(means.fit(frames_NP).cluster_centers_).astype(np.float32)


def _decisions(classifier: Any, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decision values with one column per class, and the classes; two columns for two classes."""
    values = classifier.decision_function(features)
    if values.ndim == 1:
        values = np.stack([-values, values], axis=1)
    return values, classifier.classes_
