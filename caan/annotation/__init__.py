"""Labelled data sets from votes of annotators."""
