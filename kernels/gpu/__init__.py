"""Sparse kernels for NVIDIA GPUs: layouts, one plain reference, and the kernels that read the layouts.

    layouts.py          what lies in memory: TwoFour, Dense (frozen dataclasses of torch tensors)
    two_four_pack.py    dense matrix, Packed or checkpoint -> TwoFour, and back, exact
    reference.py        matmul by unpacking, float64: what every kernel is compared with
    gemv.py             one row of x times a TwoFour (Triton)

This is the only part of `tailcut.kernels` that imports torch. Triton is imported when a kernel is first launched, so
every module loads on a machine without a GPU and without Triton.
"""
