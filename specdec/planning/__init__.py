"""What speculation with a pair would cost on this machine, told before anything is downloaded."""
