"settings.ini holds version and requirements; this passes them to setuptools."
from configparser import ConfigParser

from setuptools import find_packages, setup

config = ConfigParser()
config.read('settings.ini', encoding='utf-8')
settings = config['DEFAULT']
setup(
    version=settings['version'],
    description=settings['description'],
    python_requires=f'>={settings["min_python"]}',
    packages=find_packages(include=['sdfast', 'sdfast.*']),
    package_data={'sdfast': ['py.typed'], 'sdfast.report': ['*.css', '*.js', '*.jinja']},
    install_requires=settings['requirements'].split(),
    extras_require={key.removesuffix('_requirements'):value.split() for key, value in settings.items()
                    if key.endswith('_requirements')},
)
