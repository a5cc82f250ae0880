"""What proposes tokens: one interface, a module for each way to draft."""
