"""Gradients of single samples from one batch, layer by layer: what went into a layer and the gradient of what came out are enough.

Only where this is certain. `Layers.sums` says no to a model or a pass that it cannot take apart, and the caller goes sample by sample."""
from collections import Counter
from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm as TimmLayerNorm
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ['layers_of', 'Layers']



def _linear(m, x, g, n, f):
    x, g = x.reshape(n, -1, x.shape[-1]), g.reshape(n, -1, g.shape[-1])
    # of a single row the gradient is an outer product, and so is its square or absolute value
    w = f(g[:, 0]).T @ f(x[:, 0]) if x.shape[1] == 1 else f(torch.bmm(g.transpose(1, 2), x)).sum(0)
    return w, f(g.sum(1)).sum(0)


def _conv(m, x, g, n, f):
    d, r = len(m.kernel_size), len(x)//n
    bias = None if m.bias is None else _channels(None, g, n, f)[1]
    if m.groups > 1:
        grads = (torch.ops.aten.convolution_backward(g[i:i + r], x[i:i + r], m.weight.detach(), None, m.stride, m.padding, m.dilation, False, [0]*d, m.groups, [False, True, False])[1] for i in range(0, len(x), r))
        return sum(f(w) for w in grads), bias
    # channels last, a matrix product for each place of the kernel; with few channels one for all places, as narrow products are slow
    if any(m.padding): x = F.pad(x, [p for q in reversed(m.padding) for p in (q, q)])
    x, g = x.movedim(1, -1), g.movedim(1, -1)
    size, g = g.shape[1:-1], g.reshape(n, -1, g.shape[-1])
    if x.shape[-1] < 16:
        b, *steps, c = (x := x.contiguous()).stride()
        seen = x.as_strided((len(x), *size, *m.kernel_size, x.shape[-1]), (b, *(s*o for s, o in zip(steps, m.stride)), *(s*k for s, k in zip(steps, m.dilation)), c))
        w = f(torch.bmm(seen.reshape(n, g.shape[1], -1).transpose(1, 2), g)).sum(0).T
        return w.reshape(len(w), *m.kernel_size, -1).movedim(-1, 1), bias
    views = [x[(slice(None), *(slice(o*k, o*k + s*(t - 1) + 1, s) for o, k, s, t in zip(at, m.dilation, m.stride, size)))] for at in product(*map(range, m.kernel_size))]
    w = torch.stack([f(torch.bmm(g.transpose(1, 2), v.reshape(n, g.shape[1], -1))).sum(0) for v in views], 1)
    return w.transpose(1, 2).reshape(m.weight.shape), bias


def _channels(x, g, n, f):
    "Of a weight and a bias `(C,)` for `(n*r, C, ...)`; x is normalised, and made for this"
    return tuple(None if t is None else f(t.reshape(n, -1, t.shape[1], t[0, 0].numel()).sum((1, 3))).sum(0) for t in (None if x is None else x.mul_(g), g))


def _batch_norm(m, x, g, n, f):
    shape = (1, -1) + (1,)*(x.ndim - 2)
    w, b = _channels(x - m.running_mean.view(shape), g, n, f)
    return w*f((m.running_var + m.eps).rsqrt()), b


def _group_norm(m, x, g, n, f): return _channels(F.group_norm(x, m.num_groups, eps=m.eps), g, n, f)


def _layer_norm(m, x, g, n, f):
    x = F.layer_norm(x, m.normalized_shape, eps=m.eps)
    return tuple(f(t.reshape(n, -1, *m.normalized_shape).sum(1)).sum(0) for t in (x*g, g))


# by the function that computes the layer, so that a subclass with one of its own is not taken for its parent
RULES = {nn.Linear.forward: _linear, nn.Conv1d.forward: _conv, nn.Conv2d.forward: _conv, nn.Conv3d.forward: _conv, _BatchNorm.forward: _batch_norm,
         nn.SyncBatchNorm.forward: _batch_norm, nn.GroupNorm.forward: _group_norm, nn.LayerNorm.forward: _layer_norm, TimmLayerNorm.forward: _layer_norm}


def layers_of(
    part:nn.Module, # In eval mode
)->'Layers|None': # `None` if samples have to go one by one
    "The layers of a module in eval mode, if there is a rule for all of its parameters and none has two owners"
    rules, seen = {}, set()
    for m in part.modules():
        own = {k:p for k, p in m._parameters.items() if p is not None}
        if not own: continue
        rule = RULES.get(type(m).forward)
        if (rule is None or 'forward' in vars(m) or not own.keys() <= {'weight', 'bias'} or any(id(p) in seen or p.dtype not in (torch.float32, torch.float64) for p in own.values())
            or rule is _conv and (m.padding_mode != 'zeros' or isinstance(m.padding, str)) or rule is _batch_norm and m.running_mean is None): return None
        seen |= {id(p) for p in own.values()}
        rules[m] = rule
    return Layers(rules)


def _uses(out)->Counter:
    "How often each parameter is used in the graph of `out`, by id"
    uses, seen, todo = Counter(), {out.grad_fn}, [out.grad_fn]
    while todo:
        for node, _ in todo.pop().next_functions:
            if hasattr(node, 'variable'): uses[id(node.variable)] += 1
            elif node is not None and node not in seen:
                seen.add(node)
                todo.append(node)
    return uses


class Layers:
    "Sums over the samples of a batch of `f` (the square, the absolute value) of each one's gradient, see `sums`"
    def __init__(self,
        rules:dict, # Layer -> its rule, from `layers_of`
    ):
        self.rules, self.verified = rules, False

    def sums(self,
        outputs:Callable, # A function of a list of tensors, batch first, to a tensor with a graph, batch first
        cotangents:Callable, # A function of that tensor and the list to tensors of its shape: whose products with it are differentiated, one after another
        batch:list, # At least two samples, until one was verified
        f:Callable, # Of a product the product: f(uv) = f(u)f(v)
    )->dict|None: # id of a parameter -> sum; `None`: it has to be done sample by sample
        """Nothing is added up unless each layer is called once, on a whole number of rows a sample, and each parameter is used there
        and nowhere else. The first time, the last sample's gradient must also be that of the sample alone: not so where
        samples are mixed, or rows in another order."""
        n, calls = len(batch[0]), {m:[] for m in self.rules}
        if torch.is_autocast_enabled(batch[0].device.type): return None
        def keep(m, args, out): calls[m].append((args[0].detach(), args[0]._version, get_gradient_edge(out)) if len(args) == 1 and torch.is_tensor(out) and out.requires_grad else None)
        hooks = [m.register_forward_hook(keep) for m in self.rules]
        try: out = outputs(batch)
        finally:
            for h in hooks: h.remove()
        if not torch.is_tensor(out) or not out.requires_grad or not out.ndim or len(out) != n: return None
        uses = _uses(out)
        for m, found in calls.items():
            if any(uses[id(p)] != len(found) for p in m._parameters.values() if p is not None) or len(found) > 1: return None
            for c in found:
                if c is None or c[0]._version != c[1] or len(c[0]) % n or c[0].ndim < 2 or self.rules[m] is _conv and c[0].ndim != m.weight.ndim: return None
        called = {m:found[0] for m, found in calls.items() if found}
        if not called: return None
        cots, total = list(cotangents(out, batch)), {}
        order = sorted(range(len(cots)), key=lambda i: -cots[i][-1].abs().sum().item()) if not self.verified else range(len(cots))  # the heaviest is verified
        for k, i in enumerate(order):
            grads = list(torch.autograd.grad(out, [c[2] for c in called.values()], cots[i], retain_graph=k + 1 < len(cots), allow_unused=True))
            if any(g is None for g in grads): return None
            if not self.verified and not self._verify(outputs, batch, cots[i], called, grads, f): return None
            for j, (m, (x, _, _)) in enumerate(called.items()):
                g, grads[j] = grads[j], None
                for p, s in zip((m.weight, m.bias), self.rules[m](m, x, g, n, f)):
                    if p is not None: total[id(p)] = total[id(p)] + s if id(p) in total else s
        return total

    def _verify(self, outputs, batch, cot, called, grads, f):
        n = len(batch[0])
        weights = [p for m in called for p in (m.weight, m.bias) if p is not None]
        alone = torch.autograd.grad(outputs([t[-1:] for t in batch]), weights, cot[-1:], allow_unused=True)
        if any(a is None for a in alone): return False
        ours = [s for (m, (x, _, _)), g in zip(called.items(), grads) for p, s in zip((m.weight, m.bias), self.rules[m](m, x[-(len(x)//n):], g[-(len(x)//n):], 1, f)) if p is not None]
        alone = [f(a) for a in alone]
        total = torch.stack([a.norm() for a in alone]).norm()
        close = 1e-4 if cot.dtype == torch.float64 else 1e-2  # rounding, TF32 on GPUs, turns single ReLUs of a deep net on and off
        self.verified = bool(total > 0) and all((a - b).norm() <= close*b.norm() + 1e-6*total for a, b in zip(ours, alone))
        return self.verified
