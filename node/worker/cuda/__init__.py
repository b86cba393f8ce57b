"""Faster ways on GPUs of NVIDIA, each used where it proves right."""
