"""Run batches through buffers that stay on the device: one set for each batch size."""

from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class _Buffers:
    staged: NDArray[np.uint8]
    image: ort.OrtValue
    binding: ort.IOBinding
    options: ort.RunOptions


class BoundRunner:
    """A session with its inputs and outputs bound to device memory. Used by one thread at a time.

    Only bytes travel to the device, a quarter of what float32 would, and nothing is allocated
    while requests wait. With CUDA graphs each batch size is captured once and then replayed, for
    which its buffers must stay at their addresses.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        input_name: str,
        picture_shape: tuple[int, int, int],
        buckets: tuple[int, ...],
        *,
        device: tuple[str, int],
        graphs: bool = False,
    ) -> None:
        """Allocate nothing yet: buffers of a size are made when it first runs.

        Args:
            session: Already on the device.
            input_name: Of its only input, uint8.
            picture_shape: Of one picture.
            buckets: The batch sizes that run, rising; smaller batches are padded with black.
            device: Type as ONNX Runtime names it, ``cuda`` or ``cpu``, and index.
            graphs: Whether the session captures CUDA graphs.
        """
        self._session = session
        self._input_name = input_name
        self._picture_shape = picture_shape
        self._buckets = buckets
        self._device = device
        self._graphs = graphs
        self._names = [node.name for node in session.get_outputs()]
        self._buffers: dict[int, _Buffers] = {}

    def run(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Compute the outputs of a batch, in the graph's order.

        Args:
            images: Shape ``(n, *picture_shape)``; n is at most the largest bucket.

        Returns:
            Arrays in host memory whose first axis is the bucket's, n or more.
        """
        bucket = next(size for size in self._buckets if size >= len(images))
        if bucket not in self._buffers:
            self._buffers[bucket] = self._allocate(bucket)
        buffers = self._buffers[bucket]
        buffers.staged[: len(images)] = images
        buffers.staged[len(images) :] = 0
        buffers.image.update_inplace(buffers.staged)
        self._session.run_with_iobinding(buffers.binding, buffers.options)
        return [np.array(value.numpy(), dtype=np.float32) for value in buffers.binding.get_outputs()]

    def _allocate(self, bucket: int) -> _Buffers:
        shape = (bucket, *self._picture_shape)
        device_type, index = self._device
        image = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.uint8, device_type, index)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input_name, image)
        for name in self._names:
            binding.bind_output(name, device_type, index)
        options = ort.RunOptions()
        if self._graphs:
            # -1: run once without capture, to learn the outputs' shapes.
            options.add_run_config_entry("gpu_graph_id", "-1")
        self._session.run_with_iobinding(binding, options)
        for name, value in zip(self._names, binding.get_outputs(), strict=True):
            binding.bind_ortvalue_output(name, value)
        if self._graphs:
            options = ort.RunOptions()
            options.add_run_config_entry("gpu_graph_id", str(bucket))
        return _Buffers(np.zeros(shape, dtype=np.uint8), image, binding, options)
