"""How peers hear of each other. It only ever says whom to dial; who is there, the links say."""
