"""Products with packed weights, at the speed of reading them.

`formats` says what weights there are and what they mean, `linear` multiplies by them with one of these kernels:

- `tensor_cores`: CUDA C++, integers and tables, up to 64 tokens, fp16 and bf16;
- `gemv` and `gemm`: Triton, every form whose bytes hold whole elements of one row and group, one token and up to 64;
- `dequantize`: Triton, any form; then the library's product.

`quantize` makes integers and tables. The kernels read weights as files hold them: nothing is laid out anew at load.
"""
