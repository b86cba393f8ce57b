"""Kernels in C, compiled on the machine that they run on; torch computes the same where they cannot be."""
