"""The craft: models, methods, data, training, adapters, chat. Knows no queue and no screen."""

from studio import hardware

hardware.configure_openmp()
