"""A pretrained network that pronounces words, with weights of few bits: what recovers it?"""
