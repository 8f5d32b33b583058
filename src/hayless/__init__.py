"""hayless: make language models cheaper to train, fine-tune, compress and run, and measure what every saving costs."""

from hayless.model import registration

__version__ = "0.1.0"

registration.install()
