"""The engine: sampling, the acceptance rule, drafters and the two decoders."""
