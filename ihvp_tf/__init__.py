"""The TensorFlow backend of ihvp: Keras models and structures of variables, compiled by ``tf.function``."""
