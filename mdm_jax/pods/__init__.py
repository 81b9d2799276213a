"""Compiling for machines that are not here: does a run fit, and how fast could it be?"""
