"""'Same' padding that is the same for every picture, as an exported graph of many sizes needs it.

Keras's 'same' padding depends on the side of what is padded; timm computes it anew for each picture. For
a side that is a multiple of the stride it is kernel minus stride, whatever the side.
"""

from typing import Any

from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional

from training.zoo.quantised import QuantisedConv, fixed_pad


def fix_padding(network: nn.Module) -> None:
    """Give all convolutions with 'same' padding one that does not look at the picture, in place.

    What the network computes stays the same where every side that is padded is a multiple of the stride.
    """
    for module in list(network.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, Conv2dSame):
                setattr(module, name, _Padded(layer))
            elif isinstance(layer, QuantisedConv):
                layer.fix_padding()


class _Padded(nn.Module):
    """A convolution with 'same' padding, for sides that are multiples of its stride."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        # Under the convolution's own names, which the exported graph keeps.
        self.weight, self.bias = conv.weight, conv.bias
        self._stride, self._dilation, self._groups = conv.stride, conv.dilation, conv.groups
        self._pad = fixed_pad(conv.kernel_size, conv.stride)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x, self._pad)
        return functional.conv2d(x, self.weight, self.bias, self._stride, 0, self._dilation, self._groups)
