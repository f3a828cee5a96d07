"""Tokenizers: their files read, one vocabulary made of several, its rows filled, its files written."""
