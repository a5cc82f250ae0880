"""What a processor is asked to do: products, attention and 4-bit weights in C++."""
