"""What a study is made of: its configuration."""
