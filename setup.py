"Reads `settings.ini`: the one place for the package's metadata and requirements."
from configparser import ConfigParser
from pathlib import Path
import os, re, tempfile
from setuptools import find_packages, setup

root = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(root/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
init = (root/'hpa_fastai/__init__.py').read_text(encoding='utf-8')
github = f"https://github.com/{cfg['repository']}"
readme = (root/'README.md').read_text(encoding='utf-8')   # elsewhere its links need the repository's address
readme = re.sub(r'!\[\]\((nbs/[^)]+)\)', rf'![]({github}/raw/main/\1)', readme)
readme = re.sub(r'\]\((nbs/[^)]+)\)', rf']({github}/blob/main/\1)', readme)
statuses = {
    '3': 'Development Status :: 3 - Alpha',
    '4': 'Development Status :: 4 - Beta',
    '5': 'Development Status :: 5 - Production/Stable',
}

# Built in a temporary folder: nothing stale gets in, and a tree that can't be written to can be installed (say, one that
# is attached to a Kaggle notebook).
scratch = tempfile.TemporaryDirectory()
options = dict(build=dict(build_base=scratch.name))
if not os.access(root, os.W_OK): options['egg_info'] = dict(egg_base=scratch.name)

setup(
    name=cfg['name'],
    version=re.search(r'^__version__\s*=\s*["\'](.+?)["\']', init, re.M)[1],
    description=cfg['description'],
    keywords=cfg['keywords'].split(),
    author=cfg['author'],
    license=cfg['license'],
    url=github,
    python_requires=f">={cfg['min_python']}",
    long_description=readme,
    long_description_content_type='text/markdown',
    packages=find_packages(include=['hpa_fastai', 'hpa_fastai.*']),
    package_data={'hpa_fastai': ['assets/*', 'assets/*/*', 'assets/*/*/*']},
    install_requires=cfg['requirements'].split(),
    extras_require={o.removesuffix('_requirements'): cfg[o].split() for o in cfg if o.endswith('_requirements')},
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f"{cfg['name']}={cfg['name']}._modidx:d"],
    },
    classifiers=[
        statuses[cfg['status']],
        'Intended Audience :: Science/Research',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Programming Language :: Python :: 3 :: Only',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in range(10, 14)),
    ],
    zip_safe=False,
    options=options,
)
