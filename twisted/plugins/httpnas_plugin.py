"""Tells ``twistd`` of httpnas."""

from twisted.application.service import ServiceMaker

httpnas = ServiceMaker(
    "httpnas", "httpnas.tap", "Network-attached storage over plain HTTP.", "httpnas"
)
