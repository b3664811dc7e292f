"settings.ini is the one place for version and requirements; this hands them to setuptools."
from configparser import ConfigParser
from setuptools import find_packages, setup

cfg = ConfigParser()
cfg.read('settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
setup(version=cfg['version'], description=cfg['description'], python_requires=f">={cfg['min_python']}",
      packages=find_packages(include=['sdfast', 'sdfast.*']), package_data={'sdfast':['py.typed'], 'sdfast.report':['page.*']}, install_requires=cfg['requirements'].split(),
      extras_require={k:cfg[f'{k}_requirements'].split() for k in ('dev', 'peers', 'pretext', 'log')})
