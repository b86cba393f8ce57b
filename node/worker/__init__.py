"""The worker process: runs one model with torch. The only place that imports torch and transformers."""
