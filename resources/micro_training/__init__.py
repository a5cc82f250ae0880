"""Making the embedded models: corpus, tokenizers, target, drafts, evaluation."""
