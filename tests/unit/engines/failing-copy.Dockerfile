ARG BASE
FROM ${BASE}
COPY a.txt nope.txt /x/
