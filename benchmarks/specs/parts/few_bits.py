"""Methods that pack weights into few bits, at every width that is measured."""

from hayless.core.registry import configure

NEAREST = "uniform, 4 bits"
_GROUP = {"group_size": 64}

WITHOUT_TEXT = {
    "int8": configure("int8"),
    "int8, threshold 0": configure("int8", threshold=0),
    "fp8": configure("fp8"),
    "nf4": configure("nf4"),
    "nf4, scales whole": configure("nf4", double=False),
    "fp4": configure("nf4", type="fp4"),
    "fp4, scales whole": configure("nf4", type="fp4", double=False),
    "int4 values, blocks of 64": configure("nf4", type="int4", double=False),
    **{
        f"kmeans, {bits} bits, {words}": configure("kmeans", bits=bits, group_size=size)
        for bits in (4, 3, 2)
        for size, words in ((None, "a codebook a matrix"), (8, "8 rows a codebook"), (1, "a codebook a row"))
    },
    NEAREST: configure("uniform", bits=4, **_GROUP),
    "uniform, 8 bits": configure("uniform", bits=8, **_GROUP),
    "uniform, 4 bits, with zeros": configure("uniform", bits=4, symmetric=False, **_GROUP),
    "uniform, 4 bits, clipped": configure("uniform", bits=4, clip=True, **_GROUP),
    "uniform, 3 bits": configure("uniform", bits=3, **_GROUP),
    "uniform, 3 bits, clipped": configure("uniform", bits=3, clip=True, **_GROUP),
    "uniform, 2 bits": configure("uniform", bits=2, **_GROUP),
    "uniform, 2 bits, clipped": configure("uniform", bits=2, clip=True, **_GROUP),
}

BY_TEXT = {
    "gptq, 4 bits": configure("gptq", bits=4, **_GROUP),
    "gptq, 4 bits, not clipped": configure("gptq", bits=4, clip=False, **_GROUP),
    "gptq, 3 bits": configure("gptq", bits=3, **_GROUP),
    "gptq, 2 bits": configure("gptq", bits=2, **_GROUP),
    "awq, 4 bits": configure("awq", bits=4, **_GROUP),
    "awq, 4 bits, as published": configure("awq", bits=4, scales="inputs", clip_attention=False, **_GROUP),
    "awq, 3 bits": configure("awq", bits=3, **_GROUP),
    "awq, 2 bits": configure("awq", bits=2, **_GROUP),
}
