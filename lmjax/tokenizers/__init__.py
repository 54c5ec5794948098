"""One module per kind of tokenizer. Everybody else goes through lmjax.tokenizers.tokenizer."""
