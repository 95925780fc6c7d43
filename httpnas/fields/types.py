"""Media types by the extensions of names.

A table of our own: those of Python and of the machine differ from one version to the next, and an
answer should not depend on where the daemon runs. Types are those that IANA has registered, or else
the ones that browsers and other servers use.
"""

from __future__ import annotations

import os
from functools import lru_cache

#: A type in each line, and the extensions of its files. Packed files have the type of what packs
#: them, whatever is in them.
_TABLE = """\
application/epub+zip epub
application/geo+json geojson
application/gzip gz tgz taz svgz
application/java-archive jar
application/json json
application/json-seq json-seq
application/jsonl jsonl
application/ld+json jsonld
application/manifest+json webmanifest
application/msword doc dot wiz
application/n-quads nq
application/n-triples nt
application/octet-stream a bin dll exe o obj so
application/oda oda
application/pdf pdf
application/pkcs7-mime p7c
application/postscript ai eps ps
application/rtf rtf
application/sql sql
application/toml toml
application/trig trig
application/vnd.android.package-archive apk
application/vnd.apache.arrow.file arrow feather
application/vnd.apache.arrow.stream arrows
application/vnd.apache.parquet parquet
application/vnd.apple.mpegurl m3u m3u8
application/vnd.debian.binary-package deb
application/vnd.ms-excel xlb xls
application/vnd.ms-powerpoint pot ppa pps ppt pwz
application/vnd.oasis.opendocument.presentation odp
application/vnd.oasis.opendocument.spreadsheet ods
application/vnd.oasis.opendocument.text odt
application/vnd.openxmlformats-officedocument.presentationml.presentation pptx
application/vnd.openxmlformats-officedocument.spreadsheetml.sheet xlsx
application/vnd.openxmlformats-officedocument.wordprocessingml.document docx
application/vnd.rar rar
application/vnd.sqlite3 sqlite sqlite3
application/wasm wasm
application/x-7z-compressed 7z
application/x-bcpio bcpio
application/x-brotli br
application/x-bzip2 bz2 tbz2 tbz
application/x-compress Z
application/x-cpio cpio
application/x-csh csh
application/x-dvi dvi
application/x-gtar gtar
application/x-hdf hdf
application/x-hdf5 h5 hdf5
application/x-ipynb+json ipynb
application/x-latex latex
application/x-lz4 lz4
application/x-mif mif
application/x-ndjson ndjson
application/x-netcdf cdf nc
application/x-pkcs12 p12 pfx
application/x-pn-realaudio ram
application/x-python-code pyc pyo
application/x-rpm rpm
application/x-sh sh
application/x-shar shar
application/x-shockwave-flash swf
application/x-sv4cpio sv4cpio
application/x-sv4crc sv4crc
application/x-tar tar
application/x-tcl tcl
application/x-tex tex
application/x-texinfo texi texinfo
application/x-troff roff t tr
application/x-troff-man man
application/x-troff-me me
application/x-troff-ms ms
application/x-ustar ustar
application/x-wais-source src
application/x-xz xz txz
application/xhtml+xml xht xhtml
application/xml rdf wsdl xpdl xsl
application/yaml yaml yml
application/zip zip
application/zstd zst tzst
audio/3gpp 3gpp
audio/3gpp2 3g2 3gpp2
audio/aac aac adts ass loas
audio/basic au snd
audio/flac flac
audio/matroska mka
audio/mp4 m4a
audio/mpeg mp2 mp3
audio/ogg oga ogg opus spx
audio/webm weba
audio/x-aiff aif aifc aiff
audio/x-pn-realaudio ra
audio/x-wav wav
font/collection ttc
font/otf otf
font/ttf ttf
font/woff woff
font/woff2 woff2
image/apng apng
image/avif avif
image/bmp bmp
image/gif gif
image/heic heic
image/heif heif
image/ief ief
image/jpeg jpe jpeg jpg
image/jxl jxl
image/png png
image/svg+xml svg
image/tiff tif tiff
image/webp webp
image/x-cmu-raster ras
image/x-icon ico
image/x-portable-anymap pnm
image/x-portable-bitmap pbm
image/x-portable-graymap pgm
image/x-portable-pixmap ppm
image/x-rgb rgb
image/x-xbitmap xbm
image/x-xpixmap xpm
image/x-xwindowdump xwd
message/rfc822 eml mht mhtml nws
text/calendar ics
text/css css
text/csv csv
text/html htm html
text/javascript js mjs
text/markdown markdown md
text/n3 n3
text/plain bat c h ksh log pl srt txt
text/richtext rtx
text/tab-separated-values tsv
text/turtle ttl
text/vtt vtt
text/x-python py
text/x-setext etx
text/x-sgml sgm sgml
text/x-vcard vcf
text/xml xml
video/3gpp 3gp
video/matroska mkv
video/mp4 m4v mp4
video/mpeg m1v mpa mpe mpeg mpg
video/ogg ogv
video/quicktime mov qt
video/webm webm
video/x-msvideo avi
video/x-sgi-movie movie
"""
_TYPES = {
    extension: kind
    for kind, *extensions in map(str.split, _TABLE.splitlines())
    for extension in extensions
}
#: Text that names its encoding itself, which a charset would overrule (RFC 7303 section 3).
_TELL_THEMSELVES = ("text/xml",)


@lru_cache(1024)
def media_type(name: bytes) -> bytes | None:
    """Return the value of Content-Type for the extension of *name*, None for an unknown one.

    Text is said to be UTF-8. That is the rule of most of its types (HTML, CSS, JavaScript, CSV,
    Markdown, calendars, WebVTT, Turtle, Python). Plain text has no rule, but clients that are told
    nothing take it for ISO 8859-1.
    """
    extension = os.path.splitext(os.path.basename(name))[1][1:].decode()
    kind = _TYPES.get(extension) or _TYPES.get(extension.lower())
    if kind is None:
        return None
    is_text = kind.startswith("text/") and kind not in _TELL_THEMSELVES
    return f"{kind}; charset=utf-8".encode() if is_text else kind.encode()
