"""Report section about the classifier, computed from the arrays of classify/report.npz."""

from typing import Any

import numpy as np

from functa.runtime import image_io

MAX_CLASSES = 30  # a larger confusion matrix is an image without numbers
MAX_ERRORS = 5  # pairs of classes listed below the matrix


def sections(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Template variables of the confusion matrix; {} without arrays."""
    if not arrays:
        return {}
    confusion = arrays["confusion"]
    names = [str(name) for name in arrays["class_names"]]
    k = len(names)
    fractions = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    diagonal = np.eye(k, dtype=bool)
    errors = np.where(diagonal, 0, confusion)
    pairs = [divmod(int(index), k) for index in np.argsort(-errors, axis=None, kind="stable")]
    return {
        "names": names,
        "rows": list(zip(names, confusion.tolist(), fractions.tolist(), strict=True)),
        "image": image_io.diverging(np.where(diagonal, -fractions, fractions), 1.0),
        "shows_numbers": k <= MAX_CLASSES,
        "correct": np.trace(confusion),
        "total": confusion.sum(),
        "errors": [
            f"{names[a]} classified as {names[b]}: {confusion[a, b]:,} ({fractions[a, b]:.1%})"
            for a, b in pairs[:MAX_ERRORS]
            if errors[a, b]
        ],
    }
