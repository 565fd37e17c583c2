"""One small module a format of annotations, all with one face: ``NAME``, ``matches`` and ``read``.

``matches`` looks at the content, never at the file's name. ``read`` takes the content, the slide's technical properties
and the outlines that it adds to. ``distmil.annotations.reader`` lists them.
"""
