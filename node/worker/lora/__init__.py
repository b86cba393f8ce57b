"""LoRA adapters beside the model that they were made for."""
