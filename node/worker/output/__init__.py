"""What one answer is made of, beyond the model: adjusted logits, constraints, and what the tokens mean to the client."""
