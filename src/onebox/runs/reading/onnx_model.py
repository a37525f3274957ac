"""A network that `onebox export` has written, run by ONNX Runtime. Works without torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebox.data.image import Image
from onebox.data.processes import num_cores
from onebox.data.resize import Resize
from onebox.errors import BadInput, check, is_integer
from onebox.files import read_bytes

KEY = "onebox"  # of the metadata
MAX_BYTES = 1 << 31  # what one file of ONNX can hold


class OnnxModel:
    """See `onebox.runs.reading.predict.Model`.

    Args:
        path: the file.
        threads: that compute one batch; all cores if None.

    Attributes:
        class_names: the K names that belong to its probabilities.
        session: of ONNX Runtime.
        about: what the file says of itself: `class_names`, `image_size`, `interpolation`, `fingerprint`, `weights`.

    Raises:
        BadInput: ONNX Runtime is not installed, or the file is no network that onebox has written.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        try:
            import onnxruntime  # type: ignore[import-untyped]  # has no types
        except ImportError as error:
            raise BadInput(f"{path}: needs ONNX Runtime: pip install 'onebox[onnx]'") from error
        try:
            data = read_bytes(path, MAX_BYTES)
        except OSError as error:
            raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or num_cores()
        try:
            # From memory: a file could name others, with weights, which would be opened.
            self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            about: Any = json.loads(self.session.get_modelmeta().custom_metadata_map[KEY])
            names, self._resize = about["class_names"], Resize(about["image_size"], about["interpolation"])
            outputs = [item.name for item in self.session.get_outputs()]
            is_ours = outputs == ["boxes", "labels", "probabilities"] and is_integer(len(names), 1)
            check(is_ours and all(isinstance(name, str) for name in names), "")
        except Exception as error:  # ONNX Runtime's errors have no common class
            raise BadInput(f"{path}: no network that onebox has written; make one by `onebox export`") from error
        self.class_names: list[str] = names
        self.about: dict[str, Any] = about

    def resize(self, image: Image) -> Image:
        return self._resize(image)

    def run(self, images: Image) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        boxes, probabilities = self.session.run(["boxes", "probabilities"], {"images": images})
        return boxes, probabilities
