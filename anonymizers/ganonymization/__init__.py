"""GANonymization (Hellmann et al.): a face is re-synthesised by pix2pix from its 478 landmarks and nothing else.

============ =====================================================================================
landmarks    the landmark image
extraction   cutting a face out, eyes level, and putting another in its place
networks     generator and discriminator, with the official key names
checkpoint   reading and writing weights
synthesis    the generator at work, in PyTorch or ONNX Runtime
pipeline     the adapter ``ganonymization``
preprocess   training pairs out of a data set (segmentation: how the background goes)
train, card  training, model card
export       ONNX
============ =====================================================================================
"""

from deidbench.anonymizers.ganonymization.pipeline import Ganonymization

__all__ = ["Ganonymization"]
