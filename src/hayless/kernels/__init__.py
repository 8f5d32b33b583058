"""Kernels, Triton's and PyTorch's, each beside a plain reference of the same arguments. Needs torch and triton only.

Without a GPU Triton's run in its interpreter (TRITON_INTERPRET=1 before they are imported), in fp32 and fp16.
"""
