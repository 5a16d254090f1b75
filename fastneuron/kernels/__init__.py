"""Kernels by backend; reached only through `fastneuron.backends`."""
