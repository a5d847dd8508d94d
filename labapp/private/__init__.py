"""A registry that controls who may push and who may pull.

It is the same CNCF Distribution as the lab's own registry, in a second container: served over TLS
with a certificate of the lab's own authority, and opened by tokens, which a small service of the
lab signs for accounts with rights.
"""
