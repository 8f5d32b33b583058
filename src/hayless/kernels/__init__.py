"""Triton kernels, each beside a plain PyTorch reference of the same arguments. Needs torch and triton only.

Without a GPU they run in Triton's interpreter (TRITON_INTERPRET=1 before they are imported), in fp32 and fp16.
"""
